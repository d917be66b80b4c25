//! Memory that the engine owns or borrows: the read-only map of the model file.
//!
//! The only room, with the kernels, where `unsafe` is at home; each block says which local fact makes it sound.

pub mod map;
