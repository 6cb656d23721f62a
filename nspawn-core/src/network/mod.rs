//! A machine's link to the host: addresses chosen before it starts, set before its units start.
//!
//! systemd-nspawn makes the link (`--network-veth-extra=`); its host side bears a name that neither networkd's
//! nor NetworkManager's defaults match, so that no daemon of the host competes. Both ends are addressed over
//! rtnetlink as soon as the leader exists, with nothing running on either side. The guest's networkd, where
//! there is one, is told by a `.network` file to leave what it finds.

mod addresses;
mod links;

pub use addresses::Addresses;
pub(crate) use addresses::choose;
pub(crate) use links::{configure, networks_in_use};

/// Where the guest's networkd finds it, relative to the machine's root.
pub(crate) const GUEST_NETWORK_FILE: &str = "etc/systemd/network/05-nspawn-run-host0.network";

/// What the guest's networkd reads for host0. Source: systemd.network(5); with these settings it reports the
/// link as configured at once, so that wait-online does not hold the boot.
pub(crate) const GUEST_NETWORK: &str = "\
[Match]
Name=host0
[Network]
KeepConfiguration=yes
LinkLocalAddressing=no
IPv6AcceptRA=no
";
