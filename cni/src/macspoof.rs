//! `macspoofchk`: frames that come in through a pod's port with any other source address than the
//! pod's own MAC address are dropped.

use berth_cni::{Error, code};

use crate::{
    conf::Conf,
    names::is_stale,
    nft::{
        Element, IFNAMSIZ, interface,
        rules::{BRIDGED, MACSPOOF_SETS, failed},
    },
};

/// Lets only frames from `mac` in through `port` from now on.
pub(crate) fn add(owner: &str, port: &str, mac: [u8; 6]) -> Result<(), Error> {
    let own = elements(owner, port, mac);
    BRIDGED
        .adding(&own, |elements| BRIDGED.add(elements))
        .map_err(|errno| failed("check MAC addresses of a port", errno))
}

/// Removes the check of an attachment's port, and returns whether there was one.
pub(crate) fn del(owner: &str) -> Result<bool, Error> {
    remove(|comment| comment == owner)
}

/// Removes the checks of attachments that are not valid any more.
pub(crate) fn collect_garbage(conf: &Conf) -> Result<(), Error> {
    remove(|comment| is_stale(comment, &conf.name, &conf.valid_attachments)).map(drop)
}

/// Whether the port is still checked for this address.
///
/// # Errors
/// It is not (code 102).
pub(crate) fn check(owner: &str, port: &str, mac: [u8; 6]) -> Result<(), Error> {
    let wanted = elements(owner, port, mac);
    let found = BRIDGED.look_up(&wanted).map_err(|errno| failed("read nftables", errno))?;
    // With its comment: an element of another owner is not this pod's.
    match wanted.iter().all(|element| found.contains(element)) {
        true => Ok(()),
        false => Err(Error::new(code::DRIFT, format!("{port} lets in any MAC address"))),
    }
}

/// What one port needs: an element in the set of ports that are checked, and one in the set of
/// pairs of port and address that pass.
fn elements(owner: &str, port: &str, mac: [u8; 6]) -> Vec<Element> {
    let name = interface(port);
    debug_assert_eq!(name.len(), IFNAMSIZ, "a key has the length that its set was made with");
    // Each field of a key is padded to a multiple of four bytes.
    let joined = [&name[..], &mac, &[0; 2]].concat();
    let element = |set, key| Element { comment: Some(owner.to_owned()), ..Element::new(set, key) };
    vec![element(MACSPOOF_SETS[1], joined), element(MACSPOOF_SETS[0], name)]
}

fn remove(is_wanted: impl Fn(&str) -> bool) -> Result<bool, Error> {
    let removed = BRIDGED.remove_all(&MACSPOOF_SETS, is_wanted);
    removed
        .map(|elements| !elements.is_empty())
        .map_err(|errno| failed("remove from nftables", errno))
}
