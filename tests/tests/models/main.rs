//! The models against reference numbers that this project did not make.

mod golden;
