//! x
pub mod command;
mod cgroup;
mod config;
mod error;
mod guest;
mod host;
mod name;
mod network;
mod process;
mod record;
mod rootfs;
mod sys;
mod unit;
mod unit_path;
mod user_range;
mod wait;
pub use error::*;
