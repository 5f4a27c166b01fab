//! Hand-offs at work, over real sockets and shared memory, and between processes.

mod child;
mod ends;
mod faults;
mod malformed;
mod overlap;
mod refusals;
mod rig;
mod shapes;
