//! Interfaces: looked up, brought up, deleted, and made as veth pairs.

use std::os::fd::{AsRawFd, BorrowedFd};

use berth_cni::{Error, code};
use futures_util::TryStreamExt;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute,
    LinkFlags, LinkMessage,
};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth};

use super::request::{failed, is};

/// What this plugin reads of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub index: u32,
    /// As `0a:58:0a:01:00:05`; empty for an interface without one.
    pub mac: String,
    pub is_up: bool,
    pub is_promiscuous: bool,
    pub is_bridge: bool,
    /// Index of the bridge that it is a port of.
    pub controller: Option<u32>,
}

/// The interface of this name, or `None`.
pub(crate) async fn find(handle: &Handle, name: &str) -> Result<Option<Link>, Error> {
    match handle.link().get().match_name(name.to_owned()).execute().try_next().await {
        Ok(message) => Ok(message.map(|message| read(&message))),
        // RTM_GETLINK by name fails with ENODEV where there is no such interface.
        Err(error) if is(&error, nix::libc::ENODEV) => Ok(None),
        Err(error) => Err(failed("look up", name, &error)),
    }
}

fn read(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        mac: String::new(),
        is_up: message.header.flags.contains(LinkFlags::Up),
        is_promiscuous: message.header.flags.contains(LinkFlags::Promisc),
        is_bridge: false,
        controller: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Address(bytes) => {
                link.mac = format_mac(bytes);
            }
            // IFLA_MASTER.
            LinkAttribute::Controller(index) => link.controller = Some(*index),
            LinkAttribute::LinkInfo(infos) => {
                link.is_bridge = infos.iter().any(|info| {
                    matches!(info, netlink_packet_route::link::LinkInfo::Kind(InfoKind::Bridge))
                });
            }
            _ => {}
        }
    }
    link
}

/// A veth pair to be made.
#[derive(Debug)]
pub(crate) struct Pair<'a> {
    /// Name of the host's end.
    pub host: &'a str,
    /// Name of the pod's end.
    pub inside: &'a str,
    /// Namespace of the pod's end.
    pub netns: BorrowedFd<'a>,
    /// Index of the bridge that the host's end is a port of.
    pub bridge: u32,
    /// Of the pod's end; the kernel makes one up otherwise.
    pub mac: Option<[u8; 6]>,
    pub mtu: Option<u32>,
}

/// Makes a veth pair with one message, so that it is either complete or not there. Both ends are
/// down.
pub(crate) async fn add_pair(handle: &Handle, pair: &Pair<'_>) -> Result<(), Error> {
    let mut peer = LinkMessageBuilder::<LinkUnspec>::new()
        .name(pair.inside)
        .setns_by_fd(pair.netns.as_raw_fd());
    let mut host = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
        .name(pair.host)
        .controller(pair.bridge);
    // The two ends of a pair must have the same MTU: what one end may send the other must accept.
    if let Some(mtu) = pair.mtu {
        peer = peer.mtu(mtu);
        host = host.mtu(mtu);
    }
    if let Some(mac) = pair.mac {
        peer = peer.address(mac.to_vec());
    }
    let host = host.set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build()))).build();
    handle.link().add(host).execute().await.map_err(|error| failed("make veth", pair.host, &error))
}

pub(crate) async fn bring_up(handle: &Handle, index: u32) -> Result<(), Error> {
    let up = LinkUnspec::new_with_index(index).up().build();
    handle
        .link()
        .set(up)
        .execute()
        .await
        .map_err(|error| failed("bring up interface", &index.to_string(), &error))
}

/// Keeps the kernel from making a link-local IPv6 address for an interface; has to be called before
/// the interface is up. With hundreds of pods on a bridge, the neighbour and router discovery for
/// addresses that nobody uses is multicast to all of them.
pub(crate) async fn no_link_local(handle: &Handle, index: u32) {
    let none = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    let attribute = LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![none])]);
    let message = LinkUnspec::new_with_index(index).append_extra_attribute(attribute).build();
    // Ignored: a kernel without IPv6 refuses, and makes no such addresses.
    let _ = handle.link().set(message).execute().await;
}

/// Deletes an interface, and the peer of a veth with it. Success when it is not there.
pub(crate) async fn delete(handle: &Handle, name: &str) -> Result<(), Error> {
    let Some(link) = find(handle, name).await? else { return Ok(()) };
    match handle.link().del(link.index).execute().await {
        // ENODEV: it was deleted since it was looked up, as with the namespace of its peer.
        Err(error) if !is(&error, nix::libc::ENODEV) => Err(failed("delete", name, &error)),
        _ => Ok(()),
    }
}

/// Parses a MAC address such as `0a:58:0a:01:00:05`.
///
/// # Errors
/// Not six bytes, or a multicast address, which no interface can have.
pub(crate) fn parse_mac(text: &str) -> Result<[u8; 6], Error> {
    read_mac(text).ok_or_else(|| {
        let msg = format!("\"{text}\" is not the MAC address of an interface");
        Error::new(code::INVALID_CONFIG, msg)
    })
}

fn read_mac(text: &str) -> Option<[u8; 6]> {
    let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok());
    let mac: [u8; 6] = bytes.collect::<Option<Vec<u8>>>()?.try_into().ok()?;
    // The lowest bit of the first byte is set in multicast addresses (IEEE 802).
    (mac[0] & 1 == 0).then_some(mac)
}

pub(crate) fn format_mac(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}
