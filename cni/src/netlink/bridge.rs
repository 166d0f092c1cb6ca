//! The bridge, and its ports.

use berth_cni::{Error, code};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoBridgePort, InfoPortData, InfoPortKind, LinkAttribute, LinkMessage},
};
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec};

use super::{
    link::{Link, find, no_link_local},
    request::{dump, failed, is},
};

/// What the bridge has to be like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bridge<'a> {
    pub name: &'a str,
    /// A bridge without a MAC address of its own takes the lowest one of its ports. When that port
    /// leaves, the address changes, and the neighbour tables of all pods are wrong.
    pub mac: [u8; 6],
    pub mtu: Option<u32>,
    pub promiscuous: bool,
    pub filters_vlans: bool,
}

/// The bridge, which is made where it is not there, and is up.
///
/// # Errors
/// An interface of that name is not a bridge (code 7), or the kernel refuses.
pub(crate) async fn ensure(handle: &Handle, bridge: &Bridge<'_>) -> Result<Link, Error> {
    let name = bridge.name;
    let refused = |error: rtnetlink::Error| failed("set up bridge", name, &error);
    if let Some(link) = find(handle, name).await? {
        if !link.is_bridge {
            return Err(Error::new(
                code::INVALID_CONFIG,
                format!("{name} exists and is not a bridge"),
            ));
        }
        // Only what differs is set, as this runs for every pod.
        if !link.is_up || (bridge.promiscuous && !link.is_promiscuous) {
            let mut message = LinkUnspec::new_with_index(link.index).up();
            if bridge.promiscuous {
                message = message.promiscuous(true);
            }
            handle.link().set(message.build()).execute().await.map_err(refused)?;
        }
        // Whether the bridge filters already is not among what is read of a link; setting it again
        // does no harm.
        if bridge.filters_vlans {
            let message = LinkBridge::new(name).vlan_filtering(true).build();
            handle.link().change(message).execute().await.map_err(refused)?;
        }
        return Ok(link);
    }
    let mut message = LinkBridge::new(name).address(bridge.mac.to_vec()).up();
    if let Some(mtu) = bridge.mtu {
        message = message.mtu(mtu);
    }
    if bridge.promiscuous {
        message = message.promiscuous(true);
    }
    if bridge.filters_vlans {
        message = message.vlan_filtering(true);
    }
    match handle.link().add(message.build()).execute().await {
        // EEXIST: another ADD made the bridge since it was looked up.
        Err(error) if !is(&error, nix::libc::EEXIST) => {
            return Err(failed("make bridge", name, &error));
        }
        _ => {}
    }
    find(handle, name)
        .await?
        .ok_or_else(|| Error::new(code::KERNEL, format!("bridge {name} vanished")))
}

/// Brings up a port of the bridge. With `hairpin` it may send a frame back through the port that it
/// came in by; isolated ports do not reach one another (bridge(8)).
pub(crate) async fn start_port(
    handle: &Handle,
    index: u32,
    hairpin: bool,
    isolated: bool,
) -> Result<(), Error> {
    // The host's addresses are those of the bridge, and a port needs none.
    no_link_local(handle, index).await;
    // One message brings the port up with its flags, so that no frame passes before they are set.
    let mut message = LinkMessageBuilder::<LinkUnspec>::new().index(index).up();
    let settings: Vec<InfoBridgePort> = [
        hairpin.then_some(InfoBridgePort::HairpinMode(true)),
        isolated.then_some(InfoBridgePort::Isolated(true)),
    ]
    .into_iter()
    .flatten()
    .collect();
    if !settings.is_empty() {
        message = message
            .set_port_kind(InfoPortKind::Bridge)
            .set_port_data(InfoPortData::BridgePort(settings));
    }
    let started = handle.link().set_port(message.build()).execute().await;
    started.map_err(|error| failed("bring up port", &index.to_string(), &error))
}

/// Names of the ports of a bridge, which is given by its index.
pub(crate) async fn ports(handle: &Handle, bridge: u32) -> Result<Vec<String>, Error> {
    let all =
        dump(handle, "interfaces", RouteNetlinkMessage::GetLink(LinkMessage::default())).await?;
    Ok(all.into_iter().filter_map(|message| port_name(message, bridge)).collect())
}

/// The name of an interface, if it is a port of this bridge.
fn port_name(message: RouteNetlinkMessage, bridge: u32) -> Option<String> {
    let RouteNetlinkMessage::NewLink(message) = message else { return None };
    if !message.attributes.contains(&LinkAttribute::Controller(bridge)) {
        return None;
    }
    message.attributes.into_iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name),
        _ => None,
    })
}
