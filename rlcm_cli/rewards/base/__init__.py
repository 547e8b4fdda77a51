"""What every reward rests on: its contract, its name, its weights, and the threads of pixel rewards."""
