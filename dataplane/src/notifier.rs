//! How a queue tells its driver of used buffers.

use std::sync::Arc;

use crate::event::Call;
use crate::inbox::{Inbox, Notice};
use crate::interrupt::{self, Interrupt};

pub enum Notifier {
    /// The driver polls.
    None,
    Fd(Call),
    /// A register model's (virtio-mmio).
    Interrupt(Arc<Interrupt>),
    /// The transport sends a message (BACKEND_VRING_CALL); `token` says which transport.
    Inband(u64),
}

impl Notifier {
    pub fn notify(&self, inbox: &Inbox, queue: u16) {
        match self {
            Self::None => {}
            Self::Fd(call) => call.signal(),
            Self::Interrupt(interrupt) => interrupt.raise(interrupt::USED_BUFFER),
            Self::Inband(token) => inbox.notice(Notice::Call {
                token: *token,
                queue,
            }),
        }
    }
}
