//! `macspoofchk`: a port of the bridge lets in what comes from its pod's own MAC address, and nothing else.

use berth_cni::{Error, code};

use crate::{
    conf::Conf,
    nft::Element,
    portmap::is_stale,
    rules::{BRIDGED, GUARD_SETS, IFNAMSIZ, failed, interface},
};

/// Only `mac` passes in through `port` from now on.
pub(crate) fn add(owner: &str, port: &str, mac: [u8; 6]) -> Result<(), Error> {
    let own = elements(owner, port, mac);
    BRIDGED.adding(&own, |elements| BRIDGED.add(elements)).map_err(|errno| failed("guard a port", errno))
}

/// Success when nothing is guarded.
pub(crate) fn del(owner: &str) -> Result<(), Error> {
    remove(|comment| comment == owner)
}

pub(crate) fn collect_garbage(conf: &Conf) -> Result<(), Error> {
    remove(|comment| is_stale(comment, &conf.name, &conf.valid_attachments))
}

pub(crate) fn check(owner: &str, port: &str, mac: [u8; 6]) -> Result<(), Error> {
    let found = BRIDGED.owned(&GUARD_SETS, |comment| comment == owner)?;
    match elements(owner, port, mac).iter().all(|element| found.contains(element)) {
        true => Ok(()),
        false => Err(Error::new(code::DRIFT, format!("{port} lets in any MAC address"))),
    }
}

fn elements(owner: &str, port: &str, mac: [u8; 6]) -> Vec<Element> {
    let name = interface(port);
    debug_assert_eq!(name.len(), IFNAMSIZ, "a key has the length that its set was made with");
    let joined = [&name[..], &mac, &[0; 2]].concat();
    let element = |set, key| Element { comment: Some(owner.to_owned()), ..Element::new(set, key) };
    vec![element(GUARD_SETS[1], joined), element(GUARD_SETS[0], name)]
}

fn remove(is_wanted: impl Fn(&str) -> bool) -> Result<(), Error> {
    let found = BRIDGED.owned(&GUARD_SETS, is_wanted)?;
    if found.is_empty() { Ok(()) } else { BRIDGED.remove_found(&found) }
}
