"""How PEFT's LoRA may begin, by the value of `init_lora_weights`."""

DRAWN = (True, "gaussian")
"""Drawn at random, from neither the base nor the rows."""
AT_ZERO = (*DRAWN, "eva")
"""With B = 0: an adapter that was not trained changes nothing."""
FROM_THE_BASE = ("pissa", "olora", "corda", "lora_ga")
"""What the word begins with where the base's weights give a part of themselves to the adapter."""
