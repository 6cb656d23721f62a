//! Which addresses a machine gets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::name::MachineName;
use crate::user_range::fnv1a;

/// The pool of IPv4 addresses: 10.213.0.0/16 in blocks of four. Source: RFC 1918 (private use).
const POOL_V4: u32 = 0x0AD5_0000;

/// Blocks in the pool; an IPv6 network of its own goes with each.
const BLOCKS: u32 = 1 << 14;

/// Prefix length of a block: the host's address, the machine's, and the two a network reserves.
pub(crate) const PREFIX_V4: u8 = 30;

/// The pool of IPv6 networks: fd6e:7372:756e::/48. Source: RFC 4193 (unique local).
const POOL_V6: [u16; 3] = [0xfd6e, 0x7372, 0x756e];

/// Prefix length of a machine's IPv6 network.
pub(crate) const PREFIX_V6: u8 = 64;

/// Longest name of a network interface. Source: linux/if.h, `IFNAMSIZ` less its NUL.
const LINK_NAME_MAX: usize = 15;

/// The addresses of a machine's link to the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// Name of the host's end; the machine's is `host0`.
    pub link: String,
    /// The host's IPv4 address on the link.
    pub host_v4: Ipv4Addr,
    /// The machine's IPv4 address.
    pub guest_v4: Ipv4Addr,
    /// The host's IPv6 address on the link.
    pub host_v6: Ipv6Addr,
    /// The machine's IPv6 address.
    pub guest_v6: Ipv6Addr,
}

impl Addresses {
    /// The addresses of block `block` of the pool.
    fn of_block(name: &MachineName, block: u32) -> Self {
        let v4 = |last: u32| Ipv4Addr::from_bits(POOL_V4 + block * 4 + last);
        // a block number has 14 bits
        let net = u16::try_from(block).unwrap_or(u16::MAX);
        let [a, b, c] = POOL_V6;
        let v6 = |last: u16| Ipv6Addr::new(a, b, c, net, 0, 0, 0, last);
        Self {
            link: link_name(name, block),
            host_v4: v4(1),
            guest_v4: v4(2),
            host_v6: v6(1),
            guest_v6: v6(2),
        }
    }

    fn overlaps(&self, networks: &[(IpAddr, u8)]) -> bool {
        networks.iter().any(|(network, prefix)| match network {
            IpAddr::V4(network) => {
                let shared = u32::from(PREFIX_V4.min(*prefix));
                let mask = u32::MAX.checked_shl(32 - shared).unwrap_or(0);
                shared > 0 && network.to_bits() & mask == self.host_v4.to_bits() & mask
            }
            IpAddr::V6(network) => {
                let shared = u32::from(PREFIX_V6.min(*prefix));
                let mask = u128::MAX.checked_shl(128 - shared).unwrap_or(0);
                shared > 0 && network.to_bits() & mask == self.host_v6.to_bits() & mask
            }
        })
    }
}

/// Chooses the addresses of a machine: always the same for a name, unless they are taken.
///
/// `networks` are the host's own addresses and routes, the default routes not among them; `taken` are the
/// addresses other machines were given. `None` where the whole pool is in use.
pub(crate) fn choose(
    name: &MachineName,
    networks: &[(IpAddr, u8)],
    taken: &[Addresses],
) -> Option<Addresses> {
    let first = u32::try_from(fnv1a(name.as_str().as_bytes()) % u64::from(BLOCKS)).unwrap_or(0);
    (0..BLOCKS)
        .map(|step| Addresses::of_block(name, (first + step) % BLOCKS))
        .find(|candidate| {
            !candidate.overlaps(networks)
                && taken
                    .iter()
                    .all(|other| other.guest_v4 != candidate.guest_v4)
        })
}

/// `nr-` and what fits of the name, with the block's number: unique where the block is.
fn link_name(name: &MachineName, block: u32) -> String {
    let tail = format!("-{block:x}");
    let room = LINK_NAME_MAX - "nr-".len() - tail.len();
    let head: String = name.as_str().chars().take(room).collect();
    format!("nr-{}{tail}", head.trim_end_matches(['-', '.']))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> MachineName {
        text.parse().unwrap()
    }

    #[test]
    fn a_name_has_one_block_unless_it_is_in_use() {
        let web = choose(&name("web"), &[], &[]).unwrap();
        assert_eq!(choose(&name("web"), &[], &[]).unwrap(), web);
        let other = choose(&name("web"), &[], std::slice::from_ref(&web)).unwrap();
        assert_ne!(other.guest_v4, web.guest_v4);
        for (network, prefix) in [
            (IpAddr::V4(web.host_v4), 32),
            (IpAddr::V4(web.host_v4), 24),
            (IpAddr::V6(web.guest_v6), 128),
        ] {
            let moved = choose(&name("web"), &[(network, prefix)], &[]).unwrap();
            assert_ne!(moved.guest_v4, web.guest_v4, "{network}/{prefix}");
        }
    }

    #[test]
    fn a_pool_in_use_as_a_whole_gives_nothing() {
        let pool = (IpAddr::V4(Ipv4Addr::new(10, 0, 0, 0)), 8);
        assert_eq!(choose(&name("web"), &[pool], &[]), None);
    }

    #[test]
    fn link_names_fit() {
        for text in ["a", "web-1.example.org", &"x".repeat(64), "abcdefg-hijk"] {
            for block in [0, 0x3fff] {
                let link = link_name(&name(text), block);
                assert!(
                    link.len() <= LINK_NAME_MAX && link.starts_with("nr-"),
                    "{link}"
                );
            }
        }
    }
}
