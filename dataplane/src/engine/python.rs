//! Storage that is a program of its own, in Python: each call waits in the inbox for its answer.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};

use io_uring::squeue;
use libc::iovec;

use super::{Cursor, Engine, Io, IoKind, Partial, CHUNK};
use crate::inbox::{Inbox, Message};
use crate::sense::SenseInfo;

/// What the storage said instead of doing it.
#[derive(Debug, thiserror::Error)]
#[error("refused with sense {:x}/{:02x}/{:02x}", .0.key, .0.asc, .0.ascq)]
pub struct Refused(pub SenseInfo);

/// What a read returned; empty for the others.
type Answer = io::Result<Vec<u8>>;

/// One call on its way. Dropped without an answer, it fails.
pub struct Transfer {
    /// Whose: as `PythonEngine::new` was told.
    pub token: u64,
    pub kind: IoKind,
    pub offset: u64,
    pub len: u64,
    /// Of a write.
    pub data: Vec<u8>,
    answer: Mutex<Option<Sender<Answer>>>,
}

impl Transfer {
    /// The first answer counts. Data that are not as many as were asked for are an error.
    pub fn answer(&self, answer: Answer) {
        let sender = self
            .answer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let wanted = if self.kind == IoKind::Read {
            self.len
        } else {
            0
        };
        let checked = match answer {
            Ok(data) if data.len() as u64 != wanted => Err(io::ErrorKind::InvalidData.into()),
            other => other,
        };
        if let Some(sender) = sender {
            // An engine that is gone waits for nothing.
            let _ = sender.send(checked);
        }
    }
}

pub struct PythonEngine {
    inbox: Arc<Inbox>,
    token: u64,
    size: AtomicU64,
    discard: bool,
}

impl PythonEngine {
    /// Of `size` bytes. `discard`: the storage frees ranges, which then read as zeros.
    pub fn new(inbox: Arc<Inbox>, token: u64, size: u64, discard: bool) -> Self {
        Self {
            inbox,
            token,
            size: AtomicU64::new(size),
            discard,
        }
    }

    fn start(&self, kind: IoKind, offset: u64, len: u64, data: Vec<u8>) -> Receiver<Answer> {
        let (sender, receiver) = channel();
        self.inbox.post(Message::Transfer(Transfer {
            token: self.token,
            kind,
            offset,
            len,
            data,
            answer: Mutex::new(Some(sender)),
        }));
        receiver
    }

    fn call(&self, kind: IoKind, offset: u64, len: u64, data: Vec<u8>) -> Answer {
        let answer = self.start(kind, offset, len, data).recv();
        answer.unwrap_or_else(|_| Err(io::Error::from_raw_os_error(libc::EIO)))
    }

    fn flush(&self) -> io::Result<()> {
        self.call(IoKind::Flush, 0, self.size(), Vec::new())
            .map(drop)
    }

    /// At most `CHUNK` bytes of a transfer; how many.
    fn piece(&self, io: &Io, done: u64, memory: &mut Cursor<'_>) -> io::Result<u64> {
        let (offset, len) = (io.offset + done, (io.len - done).min(CHUNK as u64));
        match io.kind {
            IoKind::Read => {
                memory.write(&self.call(io.kind, offset, len, Vec::new())?);
            }
            IoKind::Discard => {
                self.call(io.kind, offset, len, Vec::new())?;
            }
            _ => {
                let mut data = vec![0; len as usize];
                if io.kind == IoKind::Write {
                    memory.read(&mut data);
                }
                self.call(IoKind::Write, offset, len, data)?;
            }
        }
        Ok(len)
    }
}

impl Engine for PythonEngine {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// The storage has that size already if it grows, and is given it afterwards if it shrinks.
    fn resize(&self, size: u64) -> io::Result<()> {
        self.size.store(size, Ordering::Release);
        Ok(())
    }

    fn can_discard(&self) -> bool {
        self.discard
    }

    fn try_now(&self, _io: &Io, _iov: &[iovec]) -> Option<io::Result<u64>> {
        None
    }

    fn sqe(&self, _io: &Io, _iov: &[iovec]) -> Option<squeue::Entry> {
        None
    }

    fn run(&self, io: &Io, iov: &[iovec]) -> io::Result<u64> {
        io.check(self.size(), iov)?;
        match io.kind {
            IoKind::Flush => self.flush()?,
            IoKind::Prefetch => (),
            IoKind::Mark => return Err(io::ErrorKind::Unsupported.into()),
            IoKind::Discard if !self.discard => return Err(io::ErrorKind::Unsupported.into()),
            IoKind::Read | IoKind::Write | IoKind::Discard | IoKind::Zero => {
                if io.durable && io.kind == IoKind::Read {
                    self.flush()?;
                }
                let mut memory = Cursor::new(iov);
                let mut done = 0;
                while done < io.len {
                    done += self
                        .piece(io, done, &mut memory)
                        .map_err(|error| Partial::after(done, error))?;
                }
                if io.durable && io.kind != IoKind::Read {
                    self.flush()?;
                }
            }
        }
        Ok(io.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sense::key;

    const SIZE: u64 = 4 << 20;

    fn iovec_of(bytes: &mut [u8]) -> iovec {
        iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        }
    }

    type Calls = Vec<(IoKind, u64, u64)>;

    /// Answers calls with `serve` on a thread of its own until the engine is dropped.
    fn served(
        discard: bool,
        serve: impl Fn(Transfer) + Send + 'static,
    ) -> (PythonEngine, std::thread::JoinHandle<Calls>) {
        let inbox = Arc::new(Inbox::new().unwrap());
        let engine = PythonEngine::new(inbox.clone(), 7, SIZE, discard);
        let server = std::thread::spawn(move || {
            let mut calls = Vec::new();
            // The engine's reference goes when the test is over.
            while Arc::strong_count(&inbox) > 1 {
                for message in inbox.take(8) {
                    let Message::Transfer(transfer) = message else {
                        panic!("not a transfer")
                    };
                    assert_eq!(transfer.token, 7);
                    calls.push((transfer.kind, transfer.offset, transfer.len));
                    serve(transfer);
                }
                std::thread::yield_now();
            }
            calls
        });
        (engine, server)
    }

    fn io(kind: IoKind, offset: u64, len: u64, durable: bool) -> Io {
        Io {
            kind,
            offset,
            len,
            durable,
        }
    }

    #[test]
    fn long_transfers_come_in_pieces_and_whole() {
        let medium = Mutex::new(vec![0u8; SIZE as usize]);
        let (engine, server) = served(false, move |transfer| {
            let mut medium = medium.lock().unwrap();
            let range = transfer.offset as usize..(transfer.offset + transfer.len) as usize;
            if transfer.kind == IoKind::Write {
                medium[range].copy_from_slice(&transfer.data);
                transfer.answer(Ok(Vec::new()));
            } else {
                transfer.answer(Ok(medium[range].to_vec()));
            }
        });
        let len = CHUNK as u64 * 2 + 512;
        let mut data: Vec<u8> = (0..len).map(|n| (n % 251) as u8).collect();
        let write = io(IoKind::Write, 512, len, false);
        assert_eq!(engine.run(&write, &[iovec_of(&mut data)]).unwrap(), len);
        let mut back = vec![0; len as usize];
        let (head, rest) = back.split_at_mut(1000);
        let read = io(IoKind::Read, 512, len, false);
        let iov = [iovec_of(head), iovec_of(rest)];
        assert_eq!(engine.run(&read, &iov).unwrap(), len);
        assert!(back == data);
        drop(engine);
        let calls = server.join().unwrap();
        assert_eq!(calls.len(), 6);
        assert!(calls.iter().all(|(_, _, len)| *len <= CHUNK as u64));
    }

    #[test]
    fn durable_changes_are_flushed_after_and_durable_reads_before() {
        let (engine, server) = served(true, |transfer| {
            let len = if transfer.kind == IoKind::Read {
                512
            } else {
                0
            };
            transfer.answer(Ok(vec![0; len]));
        });
        let mut data = [0; 512];
        for kind in [IoKind::Write, IoKind::Read, IoKind::Discard, IoKind::Zero] {
            let iov = [iovec_of(&mut data)];
            engine.run(&io(kind, 512, 512, true), &iov).unwrap();
        }
        engine
            .run(&io(IoKind::Prefetch, 0, 512, false), &[])
            .unwrap();
        drop(engine);
        let kinds: Vec<_> = server.join().unwrap().iter().map(|call| call.0).collect();
        use IoKind::{Discard, Flush, Read, Write};
        let wanted = [Write, Flush, Flush, Read, Discard, Flush, Write, Flush];
        assert_eq!(kinds, wanted);
    }

    #[test]
    fn errors_say_how_far_it_came() {
        let (engine, server) = served(false, |transfer| {
            transfer.answer(if transfer.offset == 0 {
                Ok(vec![0; CHUNK])
            } else {
                Err(io::Error::other(Refused(SenseInfo::new(
                    key::MEDIUM_ERROR,
                    0x1401,
                ))))
            });
        });
        let mut data = vec![0; CHUNK + 512];
        let read = io(IoKind::Read, 0, data.len() as u64, false);
        let error = engine.run(&read, &[iovec_of(&mut data)]).unwrap_err();
        let (done, inner) = Partial::split(&error);
        assert_eq!(done, Some(CHUNK as u64));
        let refused: &Refused = inner.get_ref().unwrap().downcast_ref().unwrap();
        assert_eq!((refused.0.asc, refused.0.ascq), (0x14, 0x01));
        drop(engine);
        server.join().unwrap();
    }

    #[test]
    fn no_answer_and_wrong_answers_are_errors() {
        let (engine, server) = served(false, |transfer| match transfer.offset {
            0 => drop(transfer),
            512 => transfer.answer(Ok(vec![0; 511])),
            _ => {
                transfer.answer(Ok(vec![1; 512]));
                transfer.answer(Err(io::ErrorKind::Other.into()));
            }
        });
        let mut data = [0; 512];
        let mut read = |offset| {
            engine.run(
                &io(IoKind::Read, offset, 512, false),
                &[iovec_of(&mut data)],
            )
        };
        assert_eq!(read(0).unwrap_err().raw_os_error(), Some(libc::EIO));
        assert_eq!(read(512).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(read(1024).unwrap(), 512);
        assert_eq!(read(SIZE).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        let discard = io(IoKind::Discard, 0, 512, false);
        assert!(engine.run(&discard, &[]).is_err());
        drop(engine);
        server.join().unwrap();
    }
}
