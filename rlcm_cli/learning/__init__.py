"""What objectives are made of: stored transitions replayed, minibatches, the gradient of one update, the optimizer."""
