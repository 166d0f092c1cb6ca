//! Names that are computed from an attachment, so that DEL and GC find what ADD made without a
//! record of it: interfaces of the host, and the comments of nftables elements.

use berth_cni::Attachment;

use crate::{args::Args, conf::Conf};

/// Length of the name of a port, which is as long as the kernel lets an interface's name be
/// (IFNAMSIZ - 1).
pub(crate) const PORT_LENGTH: usize = 15;

/// The host's end of a pod's veth pair: `b`, four digits of the network, ten of container and
/// interface. DEL needs no namespace to find it, and GC knows a network's ports by their beginning.
pub(crate) fn port(conf: &Conf, attachment: &Attachment) -> String {
    let name = [attachment.container_id.as_bytes(), b"/", attachment.ifname.as_bytes()].concat();
    // 40 of the 64 bits fit. Ten thousand pods of one network share a name with a probability of
    // less than one in twenty thousand.
    format!("{}{:010x}", port_prefix(conf), hash(&name) & 0xff_ffff_ffff)
}

/// How the names of all ports of a network begin.
pub(crate) fn port_prefix(conf: &Conf) -> String {
    format!("b{:04x}", hash(conf.name.as_bytes()) & 0xffff)
}

/// The intermediate functional block (ifb) through which a pod with an egress limit sends.
pub(crate) fn ifb(port: &str) -> String {
    format!("i{}", port.get(1..).unwrap_or_default())
}

/// The host's interface in a VLAN is a veth pair too; this is the name of its other end, which is
/// a port of the bridge.
pub(crate) fn vlan_port(interface: &str) -> String {
    format!("v{:014x}", hash(interface.as_bytes()) >> 8)
}

/// A locally administered MAC address for a bridge that has no IP address to take one from.
pub(crate) fn bridge_mac(bridge: &str) -> [u8; 6] {
    let [a, b, c, d, ..] = hash(bridge.as_bytes()).to_be_bytes();
    [0x0a, 0x59, a, b, c, d]
}

/// Whose an nftables element is: its comment, `CONTAINER INTERFACE NETWORK`.
pub(crate) fn owner(conf: &Conf, args: &Args) -> String {
    format!("{} {} {}", args.container_id, args.ifname, conf.name)
}

/// Whether a comment that [`owner`] wrote is of this network and of none of the valid attachments.
/// Comments of other networks and of other programs are nobody's to collect here.
pub(crate) fn is_stale(comment: &str, network: &str, valid: &[Attachment]) -> bool {
    // Ids and names have no blanks, see `is_identifier`, and interface names are refused with any.
    let mut words = comment.split(' ');
    let (Some(container_id), Some(ifname), Some(of)) = (words.next(), words.next(), words.next())
    else {
        return false;
    };
    of == network
        && !valid.iter().any(|one| one.container_id == container_id && one.ifname == ifname)
}

/// FNV-1a with 64 bits. The names must come out the same in every version of berth, which
/// [`std::hash`] does not promise.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ones_own_network_is_collected() {
        let valid = [Attachment { container_id: "a".into(), ifname: "eth0".into() }];
        assert!(!is_stale("a eth0 net", "net", &valid));
        assert!(is_stale("a eth1 net", "net", &valid));
        assert!(is_stale("b eth0 net", "net", &valid));
        assert!(!is_stale("b eth0 other", "net", &valid));
        assert!(!is_stale("somebody's", "net", &valid));
    }
}
