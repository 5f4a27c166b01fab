//! Tests of the tier over real files.

mod basic;
mod capacity;
mod corruption;
mod events;
mod faults;
mod killed;
mod measure;
mod sharing;
mod support;
