//! VLANs of the ports of a bridge, see bridge-vlan(8).

use berth_cni::Error;
use netlink_packet_route::link::BridgeVlanInfoFlags;
use rtnetlink::{Handle, LinkBridgeVlan};

use super::request::failed;

/// Sets the VLANs of a port: `untagged` (0 for none) for packets without a tag, `tagged` as ranges
/// for those that keep theirs, and the bridge's default VLAN or not.
pub(crate) async fn set(
    handle: &Handle,
    index: u32,
    untagged: u16,
    tagged: &[(u16, u16)],
    keep_default: bool,
) -> Result<(), Error> {
    let refused = |error: rtnetlink::Error| failed("set VLANs of port", &index.to_string(), &error);
    // `default_pvid` of a bridge that nobody changed; each new port is in it.
    const DEFAULT: u16 = 1;
    if !keep_default {
        let message =
            LinkBridgeVlan::new(index).vlan(DEFAULT, BridgeVlanInfoFlags::empty()).build();
        handle.link().del_with_message(message).execute().await.map_err(refused)?;
    }
    let mut message = LinkBridgeVlan::new(index);
    if untagged != 0 {
        message = message.vlan(untagged, BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged);
    }
    for (first, last) in tagged {
        // The kernel refuses a range that ends with the VLAN that it begins with
        // (br_vlan_valid_range).
        message = if first == last {
            message.vlan(*first, BridgeVlanInfoFlags::empty())
        } else {
            message
                .vlan_range_start(*first, BridgeVlanInfoFlags::empty())
                .vlan_range_end(*last, BridgeVlanInfoFlags::empty())
        };
    }
    handle.link().set(message.build()).execute().await.map_err(refused)
}
