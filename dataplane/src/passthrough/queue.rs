//! Commands in flight without a thread each: the asynchronous interface of `/dev/sgN`, where
//! `write` starts a command and `read` takes the result of one that ended (`scsi/sg.h`).

use std::collections::{HashMap, VecDeque};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::node::Completion;
use super::sg::{SgIoHdr, MAX_SENSE};
use super::transfer::Piece;
use crate::event::Event;

/// SG_MAX_QUEUE: commands that one descriptor takes.
const PER_DESCRIPTOR: usize = 16;

pub type Ended = Box<dyn FnOnce(Piece, io::Result<Completion>) + Send>;

struct Flight {
    piece: Piece,
    sense: Box<[u8; MAX_SENSE]>,
    ended: Ended,
    descriptor: usize,
}

struct Descriptor {
    fd: OwnedFd,
    in_flight: usize,
    /// The device is gone.
    dead: bool,
}

#[derive(Default)]
struct State {
    descriptors: Vec<Descriptor>,
    flights: HashMap<usize, Flight>,
    waiting: VecDeque<(Piece, Ended)>,
    last_id: usize,
    closed: bool,
}

struct Shared {
    state: Mutex<State>,
    wake: Event,
}

/// Several descriptors of one node, and the thread that waits for all of them.
pub struct SgQueue(Arc<Shared>);

impl SgQueue {
    /// For `depth` commands. `fd` is a descriptor of the node.
    pub fn new(fd: &OwnedFd, depth: usize) -> io::Result<Self> {
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let descriptors = (0..depth.div_ceil(PER_DESCRIPTOR))
            .map(|_| {
                let file = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .custom_flags(libc::O_NONBLOCK)
                    .open(&path)?;
                Ok(Descriptor {
                    fd: file.into(),
                    in_flight: 0,
                    dead: false,
                })
            })
            .collect::<io::Result<_>>()?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                descriptors,
                ..State::default()
            }),
            wake: Event::new()?,
        });
        let reader = shared.clone();
        std::thread::Builder::new()
            .name("vscsi-sg".into())
            .spawn(move || reader.serve())?;
        Ok(Self(shared))
    }

    /// Starts a piece, or keeps it until there is room. `ended` is called on any thread, this one
    /// too where the host does not take it.
    pub fn submit(&self, piece: Piece, ended: Ended) {
        let refused = self.0.lock().launch(piece, ended);
        if let Some((piece, ended, error)) = refused {
            ended(piece, Err(error));
        }
    }
}

impl Drop for SgQueue {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.wake.signal();
    }
}

impl State {
    fn launch(&mut self, piece: Piece, ended: Ended) -> Option<(Piece, Ended, io::Error)> {
        let mut alive = self.descriptors.iter_mut().enumerate();
        let Some((descriptor, free)) =
            alive.find(|(_, one)| !one.dead && one.in_flight < PER_DESCRIPTOR)
        else {
            if self.descriptors.iter().all(|one| one.dead) {
                return Some((piece, ended, gone()));
            }
            self.waiting.push_back((piece, ended));
            return None;
        };
        let mut sense = Box::new([0; MAX_SENSE]);
        self.last_id = self.last_id.wrapping_add(1);
        let id = self.last_id;
        let header = match SgIoHdr::new(&piece.call(), sense.as_mut(), id) {
            Ok(header) => header,
            Err(error) => return Some((piece, ended, error)),
        };
        let size = std::mem::size_of::<SgIoHdr>();
        // SAFETY: the header is a plain structure; what it points to stays with the flight.
        let written = unsafe { libc::write(free.fd.as_raw_fd(), (&raw const header).cast(), size) };
        if written != size as isize {
            return Some((piece, ended, io::Error::last_os_error()));
        }
        free.in_flight += 1;
        let flight = Flight {
            piece,
            sense,
            ended,
            descriptor,
        };
        self.flights.insert(id, flight);
        None
    }

    fn land(&mut self, id: usize) -> Option<Flight> {
        let flight = self.flights.remove(&id)?;
        self.descriptors[flight.descriptor].in_flight -= 1;
        Some(flight)
    }

    /// sg copies data, so that nothing of a flight is in use once its device is gone.
    fn lose(&mut self, descriptor: usize) -> Vec<Flight> {
        self.descriptors[descriptor].dead = true;
        let ids: Vec<_> = self
            .flights
            .iter()
            .filter(|(_, flight)| flight.descriptor == descriptor)
            .map(|(id, _)| *id)
            .collect();
        ids.into_iter().filter_map(|id| self.land(id)).collect()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self) {
        loop {
            let (mut polled, numbers) = {
                let state = self.lock();
                if state.closed && state.flights.is_empty() && state.waiting.is_empty() {
                    return;
                }
                let alive = state.descriptors.iter().enumerate();
                let alive = alive.filter(|(_, one)| !one.dead);
                let mut polled = vec![readable(self.wake.as_fd().as_raw_fd())];
                let mut numbers = Vec::new();
                for (number, one) in alive {
                    polled.push(readable(one.fd.as_raw_fd()));
                    numbers.push(number);
                }
                (polled, numbers)
            };
            // SAFETY: a list of that many entries; EINTR is a wake-up like any other.
            unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as _, -1) };
            if polled[0].revents != 0 {
                self.wake.clear();
            }
            for (entry, number) in polled[1..].iter().zip(numbers) {
                if entry.revents != 0 {
                    self.take(entry.fd, number);
                }
            }
        }
    }

    /// Takes all that has ended on a descriptor.
    fn take(&self, fd: i32, number: usize) {
        loop {
            let mut header = SgIoHdr::empty();
            let size = std::mem::size_of::<SgIoHdr>();
            // SAFETY: a plain structure of that size; the data go where the flight said.
            let got = unsafe { libc::read(fd, (&raw mut header).cast(), size) };
            if got == size as isize {
                self.landed(&header);
                continue;
            }
            let error = io::Error::last_os_error();
            match error.kind() {
                io::ErrorKind::WouldBlock => return,
                io::ErrorKind::Interrupted => continue,
                _ => return self.lost(number),
            }
        }
    }

    fn landed(&self, header: &SgIoHdr) {
        let (flight, refused) = {
            let mut state = self.lock();
            let flight = state.land(header.id());
            let next = state.waiting.pop_front();
            let refused = next.and_then(|(piece, ended)| state.launch(piece, ended));
            (flight, refused)
        };
        if let Some((piece, ended, error)) = refused {
            ended(piece, Err(error));
        }
        if let Some(flight) = flight {
            let completion = header.completion(&flight.sense[..]);
            (flight.ended)(flight.piece, Ok(completion));
        }
    }

    fn lost(&self, number: usize) {
        let (flights, waiting) = {
            let mut state = self.lock();
            let flights = state.lose(number);
            let waiting = match state.descriptors.iter().all(|one| one.dead) {
                true => std::mem::take(&mut state.waiting),
                false => VecDeque::new(),
            };
            (flights, waiting)
        };
        for flight in flights {
            (flight.ended)(flight.piece, Err(gone()));
        }
        for (piece, ended) in waiting {
            ended(piece, Err(gone()));
        }
    }
}

fn gone() -> io::Error {
    io::Error::from_raw_os_error(libc::ENODEV)
}

fn readable(fd: i32) -> libc::pollfd {
    libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    }
}
