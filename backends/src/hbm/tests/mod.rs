mod basic;
mod faults;
mod support;
