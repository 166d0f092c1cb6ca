//! What docker does with images beyond what the store knows: who uses them, what may be removed, and
//! what is told of it.

mod child;
mod commit;
mod publish;
mod pull;
mod removal;
mod remove;
mod users;

pub(crate) use self::{
    child::{Child, Imported, document, imported},
    commit::{Committed, commit},
    pull::{Pull, Pulled, Reference, words_of_registry},
    remove::{Options, Removed, remove},
};
