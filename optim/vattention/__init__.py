"""vAttention: keys and values in contiguous virtual memory that is committed as sequences grow.

After Prabhu et al., "vAttention: Dynamic Memory Management for Serving LLMs without
PagedAttention" (ASPLOS 2025), with memory that goes back to the system when a sequence ends.
"""
