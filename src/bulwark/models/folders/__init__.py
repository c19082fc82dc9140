"""What lies in a model's folder: one set of weights and no other, and files that go along with every change of them."""
