//! Tests of the tier over real files.

mod basic;
mod capacity;
mod corruption;
mod faults;
mod killed;
mod measure;
mod sharing;
mod support;
