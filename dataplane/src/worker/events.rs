//! The event queue: its buffers are used as Python asks for it.

use super::thread::Thread;
use crate::inbox::Notice;
use crate::iov::Cursor;

impl Thread {
    pub(super) fn push_event(&mut self, id: u64, token: u64, event: &[u8]) {
        let slot = self.tasks.reserve();
        let mut value = 0;
        let mut failure = None;
        if let Some(key) = self.keys.get(&id).copied() {
            if let Some(queue) = self.queues[key].as_mut().filter(|queue| queue.runs()) {
                let chain = &mut self.tasks.get(slot).chain;
                match queue.ring.pop(chain) {
                    Ok(true) => {
                        let written = Cursor::new(&chain.writable).write(event);
                        match queue.ring.push_used(chain.head, written as u32) {
                            Ok(()) => value = 1,
                            Err(error) => failure = Some(error),
                        }
                        queue.unpublished = true;
                        self.touched.push(key);
                    }
                    Ok(false) => {}
                    Err(error) => failure = Some(error),
                }
                if let Some(error) = failure {
                    self.failed(key, &error);
                }
            }
        }
        self.tasks.release(slot);
        self.done.push((token, value));
    }

    pub(super) fn look_for_event_buffers(&mut self, key: usize) {
        let Some(queue) = self.queue(key) else { return };
        if !queue.runs() {
            return;
        }
        match queue.ring.want_kicks() {
            Ok(true) if queue.want_event_buffers => {
                queue.want_event_buffers = false;
                let queue = queue.handle.clone();
                self.inbox.notice(Notice::Event { queue });
            }
            Ok(_) => {}
            Err(error) => self.failed(key, &error),
        }
    }
}
