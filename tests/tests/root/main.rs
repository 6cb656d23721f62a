//! Tests that boot machines, or look at what only root could make.

mod fixture;
mod systemd_host;
