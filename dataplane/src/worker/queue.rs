//! One queue as its worker runs it.

use std::sync::Arc;

use super::QueueRef;
use crate::event::Kick;
use crate::memory::GuestMemory;
use crate::notifier::Notifier;
use crate::port::Port;
use crate::ring::{Chain, Ring, RingError};

pub(crate) struct Run {
    pub handle: QueueRef,
    pub port: Arc<Port>,
    pub memory: Arc<GuestMemory>,
    pub ring: Box<dyn Ring>,
    pub size: usize,
    pub big_endian: bool,
    pub enabled: bool,
    pub notifier: Notifier,
    pub kick: Option<Kick>,
    /// Looked at without kicks (vhost-user: SET_VRING_KICK without a descriptor).
    pub poll: bool,
    /// Chains taken and not yet used.
    pub in_flight: usize,
    /// Used entries pushed and not yet published.
    pub unpublished: bool,
    /// The driver was notified, through whatever notifier there was at the time.
    pub notified: bool,
    /// Waits in the worker's ready list.
    pub ready: bool,
    /// Token of the `stop` that waits for this queue's tasks.
    pub stop: Option<u64>,
    /// The ring broke an invariant, or its driver is gone: it is not touched again.
    pub dead: bool,
    pub want_event_buffers: bool,
    /// Waits for a translation; nothing is taken or published until then.
    pub parked: bool,
}

impl Run {
    /// May chains be taken?
    pub fn runs(&self) -> bool {
        self.enabled && !self.dead && !self.parked && self.stop.is_none()
    }

    /// The next chain, counted as in flight. False: there is none, and kicks are wanted again.
    pub fn take(&mut self, chain: &mut Chain) -> Result<bool, RingError> {
        let popped = self.pop(chain)?;
        self.in_flight += usize::from(popped);
        Ok(popped)
    }

    fn pop(&mut self, chain: &mut Chain) -> Result<bool, RingError> {
        if self.ring.pop(chain)? {
            return Ok(true);
        }
        if !self.ring.want_kicks()? {
            return Ok(false);
        }
        // A chain came between the two looks.
        self.ring.suppress_kicks()?;
        self.ring.pop(chain)
    }
}
