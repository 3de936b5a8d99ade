"""What was refused at the door, by the id that stands in the reply: `ring` keeps it, `reader` finds it, `causes` explains it."""
