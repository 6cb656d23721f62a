//! Setting addresses and routes over rtnetlink, on the host and in a machine's network namespace.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use nix::sched::{CloneFlags, setns};
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};

use super::addresses::{Addresses, PREFIX_V4, PREFIX_V6};
use crate::error::{Cause, MachineError, PathContext as _};
use crate::name::MachineName;

/// The kernel answers at once; this bounds a netlink socket that does not.
const ANSWER: Duration = Duration::from_secs(10);

/// Addresses both ends of a machine's link and routes the machine's traffic to the host.
pub(crate) fn configure(
    name: &MachineName,
    leader_pid: u32,
    addresses: &Addresses,
) -> Result<(), MachineError> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |source: Cause| MachineError::Network {
            name: name.clone(),
            what,
            source,
        }
    };
    let (host_v4, host_v6) = (addresses.host_v4, addresses.host_v6);
    run(async |handle| {
        let index = up(&handle, &addresses.link).await?;
        add(&handle, index, host_v4.into(), PREFIX_V4).await?;
        add(&handle, index, host_v6.into(), PREFIX_V6).await
    })
    .map_err(failed("addressing the host's end"))?;
    let namespace_path = format!("/proc/{leader_pid}/ns/net");
    let namespace = File::open(&namespace_path).at("open", Path::new(&namespace_path))?;
    let inside = std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            setns(&namespace, CloneFlags::CLONE_NEWNET)
                .map_err(|error| Cause::from(std::io::Error::from(error)))?;
            run(async |handle| {
                up(&handle, "lo").await?;
                let index = up(&handle, "host0").await?;
                add(&handle, index, addresses.guest_v4.into(), PREFIX_V4).await?;
                add(&handle, index, addresses.guest_v6.into(), PREFIX_V6).await?;
                let v4 = RouteMessageBuilder::<Ipv4Addr>::new()
                    .gateway(host_v4)
                    .output_interface(index)
                    .build();
                handle.route().add(v4).replace().execute().await?;
                let v6 = RouteMessageBuilder::<Ipv6Addr>::new()
                    .gateway(host_v6)
                    .output_interface(index)
                    .build();
                handle.route().add(v6).replace().execute().await?;
                Ok(())
            })
        });
        worker
            .join()
            .unwrap_or_else(|_| Err("a helper thread died".into()))
    });
    inside.map_err(failed("addressing the machine's end"))
}

/// The networks the host has addresses in or routes to, default routes left out.
pub(crate) fn networks_in_use() -> Result<Vec<(IpAddr, u8)>, Cause> {
    run(async |handle| {
        let mut networks = Vec::new();
        let mut addresses = handle.address().get().execute();
        while let Some(message) = addresses.try_next().await? {
            let prefix = message.header.prefix_len;
            networks.extend(
                message
                    .attributes
                    .iter()
                    .filter_map(|attribute| match attribute {
                        AddressAttribute::Address(address) => Some((*address, prefix)),
                        _ => None,
                    }),
            );
        }
        for request in [
            RouteMessageBuilder::<Ipv4Addr>::new().build(),
            RouteMessageBuilder::<Ipv6Addr>::new().build(),
        ] {
            let mut routes = handle.route().get(request).execute();
            while let Some(message) = routes.try_next().await? {
                let prefix = message.header.destination_prefix_length;
                networks.extend(message.attributes.iter().filter_map(
                    |attribute| match attribute {
                        RouteAttribute::Destination(RouteAddress::Inet(a)) => {
                            Some((IpAddr::V4(*a), prefix))
                        }
                        RouteAttribute::Destination(RouteAddress::Inet6(a)) => {
                            Some((IpAddr::V6(*a), prefix))
                        }
                        _ => None,
                    },
                ));
            }
        }
        networks.retain(|(address, prefix)| *prefix > 0 && !address.is_multicast());
        Ok(networks)
    })
}

/// Runs `work` with a netlink socket of the calling thread's network namespace.
fn run<T>(work: impl AsyncFnOnce(Handle) -> Result<T, rtnetlink::Error>) -> Result<T, Cause> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(tokio::time::timeout(ANSWER, work(handle)).await??)
    })
}

/// Sets a link up and returns its index.
async fn up(handle: &Handle, name: &str) -> Result<u32, rtnetlink::Error> {
    let link = handle
        .link()
        .get()
        .match_name(name.to_owned())
        .execute()
        .try_next()
        .await?;
    let index = link.ok_or(rtnetlink::Error::RequestFailed)?.header.index;
    handle
        .link()
        .set(LinkUnspec::new_with_index(index).up().build())
        .execute()
        .await?;
    Ok(index)
}

/// Gives a link an address, usable at once: no other host is on the link to detect a duplicate on.
async fn add(
    handle: &Handle,
    index: u32,
    address: IpAddr,
    prefix: u8,
) -> Result<(), rtnetlink::Error> {
    let mut request = handle.address().add(index, address, prefix).replace();
    if address.is_ipv6() {
        request
            .message_mut()
            .attributes
            .push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    request.execute().await
}
