//! Entries of connection tracking, as conntrack(8) shows them.

use berth_cni::Error;
use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    conntrack::{ConntrackAttribute, ConntrackMessage, ProtoTuple, Protocol, Tuple},
};

use crate::{
    netfilter::{dump, listed, request},
    nft::rules::failed,
};

/// Deletes the entries of UDP flows to these ports.
///
/// UDP has no connections: as long as a client keeps sending from the same port, its packets belong
/// to the entry that the first one made, and go where that says. An entry from before the port was
/// mapped leads to the host, and one from before its pod left leads to the pod that left.
///
/// # Errors
/// The kernel does not list or delete entries (code 100).
pub(super) fn forget_udp(ports: &[u16]) -> Result<(), Error> {
    // Of all families: the kernel lists only one where the header names one.
    let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0);
    let all = NetfilterMessage::new(header, ConntrackMessage::Get(Vec::new()));
    for flow in dump(&all).map_err(|errno| failed("list UDP flows", errno))? {
        let flow = listed(&flow).map_err(|errno| failed("list UDP flows", errno))?;
        let family = flow.header.family;
        let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = flow.inner else {
            continue;
        };
        // What is listed besides entries, or of other protocols, is passed over.
        let Some(original) = original_tuple(attributes, ports) else { continue };
        let header = NetfilterHeader::new(family, 0, 0);
        let message = NetfilterMessage::new(header, ConntrackMessage::Delete(vec![original]));
        match request(vec![(message, NLM_F_REQUEST | NLM_F_ACK)]) {
            // ENOENT: it expired since it was listed.
            Ok(()) | Err(nix::libc::ENOENT) => {}
            Err(errno) => return Err(failed("forget a UDP flow", errno)),
        }
    }
    Ok(())
}

/// The tuple by which an entry is deleted, if it is of a UDP flow to one of these ports. It is the
/// one of the original direction, which has the port of the host as its destination.
fn original_tuple(
    attributes: Vec<ConntrackAttribute>,
    ports: &[u16],
) -> Option<ConntrackAttribute> {
    attributes.into_iter().find(|attribute| match attribute {
        ConntrackAttribute::CtaTupleOrig(tuples) => is_udp_to(tuples, ports),
        _ => false,
    })
}

fn is_udp_to(tuples: &[Tuple], ports: &[u16]) -> bool {
    let fields = tuples.iter().filter_map(|tuple| match tuple {
        Tuple::Proto(fields) => Some(fields),
        _ => None,
    });
    let fields: Vec<&ProtoTuple> = fields.flatten().collect();
    fields.contains(&&ProtoTuple::Protocol(Protocol::Udp))
        && fields
            .iter()
            .any(|field| matches!(field, ProtoTuple::DestinationPort(port) if ports.contains(port)))
}
