//! Networks that are kept apart from others on the same machine.
//!
//! ```text
//! table inet berth-isolation {
//!   set bridges    those of all networks with any isolation
//!   set closed     those that only mapped ports lead into
//!   set internal   those that nothing enters or leaves
//!   set within     pairs of a bridge with itself: with br_netfilter, frames between two ports pass
//!                  here as well
//!   chain forward  accept what stays within a network, what belongs to a known connection, and
//!                  what was translated to a mapped port; drop what else would enter a closed
//!                  network, or go from one of the bridges to another
//! }
//! ```
//!
//! A bridge is one element of each set, which its first container adds. It goes with the network of
//! the engine that it is of; that of pods stays.

use berth_cni::Error;

use crate::{
    conf::{Conf, Isolation},
    nft::{
        Element, interface,
        rules::{ISOLATION, failed},
    },
};

/// Keeps the network of `conf` apart, as it wants; success when that is so already.
pub(crate) fn ensure(conf: &Conf) -> Result<(), Error> {
    let wanted = elements(&conf.bridge, conf.isolation);
    if wanted.is_empty() {
        return Ok(());
    }
    let found = ISOLATION.look_up(&wanted).map_err(|errno| failed("read nftables", errno))?;
    if found.len() == wanted.len() {
        return Ok(());
    }
    ISOLATION
        .adding(&wanted, |elements| ISOLATION.add(elements))
        .map_err(|errno| failed("isolate the network", errno))
}

/// Undoes `ensure`.
pub(crate) fn forget(conf: &Conf) -> Result<(), Error> {
    let elements = elements(&conf.bridge, conf.isolation);
    ISOLATION.forget(&elements).map_err(|errno| failed("end the isolation of the network", errno))
}

fn elements(bridge: &str, isolation: Isolation) -> Vec<Element> {
    let name = interface(bridge);
    let sets: &[&'static str] = match isolation {
        Isolation::None => return Vec::new(),
        Isolation::Bridges => &["bridges"],
        Isolation::Closed => &["bridges", "closed"],
        Isolation::Internal => &["bridges", "closed", "internal"],
    };
    let pair = Element::new("within", [name.clone(), name.clone()].concat());
    sets.iter().map(|set| Element::new(set, name.clone())).chain([pair]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_in_the_sets_of_its_isolation() {
        let sets = |isolation| {
            elements("docker0", isolation).iter().map(|element| element.set).collect::<Vec<_>>()
        };
        assert!(sets(Isolation::None).is_empty());
        assert_eq!(sets(Isolation::Bridges), ["bridges", "within"]);
        assert_eq!(sets(Isolation::Closed), ["bridges", "closed", "within"]);
        assert_eq!(sets(Isolation::Internal), ["bridges", "closed", "internal", "within"]);
    }
}
