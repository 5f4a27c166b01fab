//! Hand-offs at work.
