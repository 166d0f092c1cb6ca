//! Addresses of interfaces.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use berth_cni::{Error, code};
use ipnet::IpNet;
use netlink_packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage},
};
use rtnetlink::Handle;

use super::request::{dump, failed, is};

/// Adds an address; success when it is there already. With `with_dad` an IPv6 address goes through
/// duplicate address detection and is of use only after that.
pub(crate) async fn add(
    handle: &Handle,
    index: u32,
    address: IpNet,
    with_dad: bool,
) -> Result<(), Error> {
    add_new(handle, index, address, with_dad).await.map(drop)
}

/// Whether the address was not there before.
async fn add_new(
    handle: &Handle,
    index: u32,
    address: IpNet,
    with_dad: bool,
) -> Result<bool, Error> {
    let mut request = handle.address().add(index, address.addr(), address.prefix_len());
    if !with_dad && address.addr().is_ipv6() {
        // Detection takes a second or more, during which the address cannot be used. The allocator
        // has made sure already that no other pod has it.
        request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
    }
    match request.execute().await {
        Ok(()) => Ok(true),
        Err(error) if is(&error, nix::libc::EEXIST) => Ok(false),
        Err(error) => Err(failed("add address", &address.to_string(), &error)),
    }
}

/// Makes `gateway` an address of the bridge, besides `others`.
///
/// # Errors
/// The bridge has yet another IPv4 address, or another one of the same IPv6 network (code 7). With
/// `force` that address is removed instead.
pub(crate) async fn own(
    handle: &Handle,
    bridge: (&str, u32),
    gateway: IpNet,
    others: &[IpNet],
    force: bool,
) -> Result<(), Error> {
    let (name, index) = bridge;
    // For every pod but the first the address is there already. The bridge's other addresses were
    // compared when it was added, so they are not listed for each pod.
    if !add_new(handle, index, gateway, false).await? {
        return Ok(());
    }
    for message in address_messages(handle, index).await? {
        let Some(found) = address_of(&message) else { continue };
        let same_family = found.is_ipv4() == gateway.addr().is_ipv4();
        let is_other = same_family
            && found != gateway.addr()
            && !others.iter().any(|other| other.addr() == found);
        if !is_other || (found.is_ipv6() && !gateway.contains(&found)) {
            continue;
        }
        if force {
            let removed = handle.address().del(message).execute().await;
            removed.map_err(|error| failed("remove address", &found.to_string(), &error))?;
            continue;
        }
        // The address that was just added must not stay on a bridge of somebody else.
        let ours = address_messages(handle, index)
            .await?
            .into_iter()
            .find(|one| address_of(one) == Some(gateway.addr()));
        if let Some(ours) = ours {
            let removed = handle.address().del(ours).execute().await;
            removed.map_err(|error| failed("remove address", &gateway.to_string(), &error))?;
        }
        let msg = format!("{name} has the address {found}, not {gateway}: see forceAddress");
        return Err(Error::new(code::INVALID_CONFIG, msg));
    }
    Ok(())
}

/// All addresses of an interface.
pub(crate) async fn list(handle: &Handle, index: u32) -> Result<Vec<IpAddr>, Error> {
    Ok(address_messages(handle, index).await?.iter().filter_map(address_of).collect())
}

async fn address_messages(handle: &Handle, index: u32) -> Result<Vec<AddressMessage>, Error> {
    let all = dump(handle, "addresses", RouteNetlinkMessage::GetAddress(AddressMessage::default()))
        .await?;
    // The kernel filters by interface only on sockets with strict checking
    // (NETLINK_GET_STRICT_CHK), so the list is of all interfaces.
    Ok(all.into_iter().filter_map(|message| of_interface(message, index)).collect())
}

fn of_interface(message: RouteNetlinkMessage, index: u32) -> Option<AddressMessage> {
    match message {
        RouteNetlinkMessage::NewAddress(address) if address.header.index == index => Some(address),
        _ => None,
    }
}

fn address_of(message: &AddressMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    })
}

/// Waits until duplicate address detection (RFC 4862) has ended for all addresses.
///
/// # Errors
/// Somebody else has one of the addresses (code 103), or there is no end after ten seconds.
pub(crate) async fn wait_for_dad(handle: &Handle, index: u32) -> Result<(), Error> {
    const PATIENCE: Duration = Duration::from_secs(10);
    const PAUSE: Duration = Duration::from_millis(20);
    let begun = Instant::now();
    loop {
        let messages = address_messages(handle, index).await?;
        let with = |flag| messages.iter().find(|message| message.header.flags.contains(flag));
        if let Some(duplicate) = with(AddressHeaderFlags::Dadfailed) {
            let address =
                address_of(duplicate).map(|address| address.to_string()).unwrap_or_default();
            return Err(Error::new(
                code::IN_USE,
                format!("another machine or pod of the network has the address {address}"),
            ));
        }
        if with(AddressHeaderFlags::Tentative).is_none() {
            return Ok(());
        }
        if begun.elapsed() > PATIENCE {
            return Err(Error::new(code::KERNEL, "duplicate address detection does not end"));
        }
        // Polled, for simplicity: detection takes about a second, and few configurations ask for
        // it.
        tokio::time::sleep(PAUSE).await;
    }
}
