"""The only room that imports diffusers and peft."""
