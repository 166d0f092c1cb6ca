//! The requests of rtnetlink(7) that a bridge network needs, by the object that they are about.

pub(crate) mod address;
pub(crate) mod bridge;
pub(crate) mod link;
pub(crate) mod netns;
mod request;
pub(crate) mod route;
pub(crate) mod vlan;

pub(crate) use request::failed;
