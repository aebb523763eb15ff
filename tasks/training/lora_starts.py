"""How PEFT's LoRA may begin, by the value of `init_lora_weights`."""

DRAWN = (True, "gaussian")
"""Drawn at random, from neither the base nor the rows."""
AT_ZERO = (*DRAWN, "eva")
"""With B = 0: an adapter that was not trained changes nothing."""
