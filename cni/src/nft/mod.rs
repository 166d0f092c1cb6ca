//! nftables over netlink, without the program `nft`: transactions, the elements of sets,
//! expressions, and the node's own rules.

mod element;
mod expr;
pub(crate) mod rules;
mod table;

pub(crate) use element::Element;
pub(crate) use expr::{IFNAMSIZ, interface};
