//! Engines at work, over real sockets and in real processes.

mod ascend;
mod child;
mod control;
mod fabric;
mod faults;
mod grants;
mod leaks;
mod malformed;
mod newcomers;
mod raw;
mod releases;
mod rig;
mod round_trips;
mod security;
mod sharing;
mod stopped_sharers;
mod wire_page;
