"""Between the input queue and the output channels: route each recipient, split, examine (design: the path of a message)."""
