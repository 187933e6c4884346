//! What a device's commands show of it that somebody should look at.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// It ended a command as if it, or the way to it, were gone.
pub const GONE: u64 = 1;
/// The host did not take a piece that kept to its limits.
pub const REFUSED: u64 = 2;

type Listener = Box<dyn FnOnce(u64) + Send>;

#[derive(Default)]
struct State {
    pending: u64,
    listener: Option<Listener>,
    closed: bool,
}

/// Told once, until somebody listens again; what happens meanwhile is kept.
#[derive(Default)]
pub struct Attention(Mutex<State>);

impl Attention {
    /// `listener` is called with all that has happened, or with 0 once it is closed; on any thread,
    /// this one too.
    pub fn listen(&self, listener: impl FnOnce(u64) + Send + 'static) {
        let mut state = self.lock();
        state.listener = Some(Box::new(listener));
        Self::tell(state);
    }

    pub fn happened(&self, what: u64) {
        let mut state = self.lock();
        state.pending |= what;
        Self::tell(state);
    }

    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        Self::tell(state);
    }

    fn tell(mut state: MutexGuard<'_, State>) {
        if state.pending == 0 && !state.closed {
            return;
        }
        if let Some(listener) = state.listener.take() {
            let happened = std::mem::take(&mut state.pending);
            let told = if state.closed { 0 } else { happened };
            drop(state);
            listener(told);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn it_is_told_once_and_what_happens_meanwhile_is_kept() {
        let (attention, (sender, told)) = (Attention::default(), channel());
        let listen = || {
            let sender = sender.clone();
            attention.listen(move |what| sender.send(what).unwrap());
        };
        listen();
        assert!(told.try_recv().is_err(), "nothing has happened");
        attention.happened(REFUSED);
        assert_eq!(told.try_recv(), Ok(REFUSED));
        attention.happened(REFUSED);
        attention.happened(GONE);
        assert!(told.try_recv().is_err(), "nobody listens");
        listen();
        assert_eq!(told.try_recv(), Ok(GONE | REFUSED));
        listen();
        attention.close();
        assert_eq!(told.try_recv(), Ok(0));
        listen();
        assert_eq!(told.try_recv(), Ok(0), "it stays closed");
    }
}
