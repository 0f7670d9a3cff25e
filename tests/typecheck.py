"""The checker that `conftest` puts on every function: beartype, to which an int is a float too."""

import beartype

checked = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
