"""What a plan costs: how long each job is expected to take, and what all of them need.

accelerators   what a GPU can do, and how much of that is reached
published      how long authors say that a job of theirs took
amounts        how much work a job is, from its settings
estimates      how long it takes: measured, published or guessed
graph          the jobs that a dry run would start
schedule       how long all of them take on so many GPUs
storage        disk, downloads and judges
first          what to run first
tables         all of it as `bulwark plan` prints it
"""
