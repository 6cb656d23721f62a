//! Tests that boot machines, or look at what only root could make.

mod detached;
mod exec;
mod faults;
mod filesystems;
mod fixture;
mod images;
mod killed;
mod library;
mod network;
mod oci;
mod on_systemd;
mod options;
mod results;
mod signals;
mod systemd_host;
