//! How a queue tells its driver of used buffers.

use crate::event::Call;
use crate::inbox::{Inbox, Notice};

pub enum Notifier {
    /// The driver polls.
    None,
    Fd(Call),
    /// The transport sends a message (BACKEND_VRING_CALL); `token` says which transport.
    Inband(u64),
}

impl Notifier {
    pub fn notify(&self, inbox: &Inbox, queue: u16) {
        match self {
            Self::None => {}
            Self::Fd(call) => call.signal(),
            Self::Inband(token) => inbox.notice(Notice::Call {
                token: *token,
                queue,
            }),
        }
    }
}
