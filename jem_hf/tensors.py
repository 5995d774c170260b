"""`jem_hf.tensors`, as scripts written for earlier versions import it: see `data/tensors.py`."""

from .data.tensors import AttributeStream, AttributeTensors, encode_dataset

__all__ = ["AttributeStream", "AttributeTensors", "encode_dataset"]
