//! Survival of guest memory that vanishes.
//!
//! Whoever shares a file may truncate it; touching the lost pages then raises SIGBUS. The handler
//! maps zero pages over the whole faulting region, marks its session dead and lets the access run
//! again. It takes no lock and allocates nothing: it walks a list of slots that only ever grows
//! (a slot is used again once its region is gone), each a sequence lock over one range.
//!
//! The handler is installed with the first region and passes on what is none of its business. Who
//! installs another later must pass on likewise (Python's faulthandler: enable it before).

use std::ffi::{c_int, c_void};
use std::io;
use std::ptr::{null_mut, NonNull};
use std::sync::atomic::{fence, AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// A range of mapped memory that the handler knows of.
struct Slot {
    /// Odd while the rest is being changed.
    version: AtomicUsize,
    start: AtomicUsize,
    /// 0: the slot is free.
    length: AtomicUsize,
    dead: AtomicPtr<AtomicBool>,
    next: Option<&'static Slot>,
}

/// Most recent slot; reached by the handler.
static SLOTS: AtomicPtr<Slot> = AtomicPtr::new(null_mut());
/// Slots without a range. Serialises all changes; the handler never takes it.
static FREE: Mutex<Vec<&'static Slot>> = Mutex::new(Vec::new());
/// What SIGBUS did before us.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// Protects a range from SIGBUS for as long as it lives.
pub(super) struct Guard {
    slot: &'static Slot,
    /// The slot points to it.
    _dead: Arc<AtomicBool>,
}

impl Guard {
    /// `length` bytes at `start` must be a mapping that is whole pages and outlives the guard.
    pub(super) fn new(
        start: NonNull<u8>,
        length: usize,
        dead: Arc<AtomicBool>,
    ) -> io::Result<Self> {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        if PREVIOUS.get().is_none() {
            install()?;
        }
        let slot = free.pop().unwrap_or_else(grow);
        slot.set(start.as_ptr() as usize, length, Arc::as_ptr(&dead));
        Ok(Self { slot, _dead: dead })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        self.slot.set(0, 0, std::ptr::null());
        free.push(self.slot);
    }
}

impl Slot {
    /// Only under the lock of `FREE`.
    fn set(&self, start: usize, length: usize, dead: *const AtomicBool) {
        let version = self.version.load(Ordering::Relaxed);
        self.version
            .store(version.wrapping_add(1), Ordering::Relaxed);
        // No store below becomes visible before the odd version.
        fence(Ordering::Release);
        self.start.store(start, Ordering::Relaxed);
        self.length.store(length, Ordering::Relaxed);
        self.dead.store(dead.cast_mut(), Ordering::Relaxed);
        self.version
            .store(version.wrapping_add(2), Ordering::Release);
    }

    /// The range and flag, or None while they change. A slot that changes is never the one that
    /// was hit: who touches a region keeps it mapped, so there is no need to wait for the writer.
    fn get(&self) -> Option<(usize, usize, *const AtomicBool)> {
        let version = self.version.load(Ordering::Acquire);
        let start = self.start.load(Ordering::Relaxed);
        let length = self.length.load(Ordering::Relaxed);
        let dead = self.dead.load(Ordering::Relaxed);
        // No load above is delayed past the second look at the version.
        fence(Ordering::Acquire);
        let stable = version % 2 == 0 && version == self.version.load(Ordering::Relaxed);
        stable.then_some((start, length, dead))
    }
}

/// A new slot in front of the others. Only under the lock of `FREE`.
fn grow() -> &'static Slot {
    // SAFETY: slots are leaked below, so whatever the list holds lives for ever.
    let next = unsafe { SLOTS.load(Ordering::Relaxed).as_ref() };
    let slot: &'static Slot = Box::leak(Box::new(Slot {
        version: AtomicUsize::new(0),
        start: AtomicUsize::new(0),
        length: AtomicUsize::new(0),
        dead: AtomicPtr::new(null_mut()),
        next,
    }));
    SLOTS.store((slot as *const Slot).cast_mut(), Ordering::Release);
    slot
}

/// Only under the lock of `FREE`, once.
fn install() -> io::Result<()> {
    // SAFETY: all-zero is a valid sigaction: default disposition, empty mask, no flags.
    let (mut ours, mut previous): (libc::sigaction, libc::sigaction) =
        unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    ours.sa_sigaction = on_sigbus as *const () as usize;
    ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    // SAFETY: asks only, into a place of the right type.
    if unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), &mut previous) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // Known before our handler can need it.
    PREVIOUS.get_or_init(|| previous);
    // SAFETY: `on_sigbus` has the signature that SA_SIGINFO asks for and is async-signal-safe.
    if unsafe { libc::sigaction(libc::SIGBUS, &ours, null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

extern "C" fn on_sigbus(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid siginfo; errno is this thread's own.
    let (code, address, errno) = unsafe {
        let errno = *libc::__errno_location();
        ((*info).si_code, (*info).si_addr() as usize, errno)
    };
    // These two are raised by the access itself, so the accessing thread still holds the region.
    // A SIGBUS that was sent, or that announces bad memory in advance, says nothing of the kind.
    let accessed = matches!(code, libc::BUS_ADRERR | libc::BUS_MCEERR_AR);
    if !(accessed && repair(address)) {
        chain(signal, info, context, code > 0);
    }
    // SAFETY: this thread's errno, as the interrupted code left it.
    unsafe { *libc::__errno_location() = errno };
}

/// Zero pages for the region that holds `address`; false if it is none of ours.
fn repair(address: usize) -> bool {
    // SAFETY: slots are never freed.
    let mut next = unsafe { SLOTS.load(Ordering::Acquire).as_ref() };
    while let Some(slot) = next {
        if let Some((start, length, dead)) = slot.get() {
            if address.wrapping_sub(start) < length {
                // First the flag, so that nobody takes the zeros for the guest's.
                // SAFETY: the faulting thread keeps the region, hence its guard and flag, alive.
                unsafe { (*dead).store(true, Ordering::Release) };
                return map_zeros(start, length);
            }
        }
        next = slot.next;
    }
    false
}

fn map_zeros(start: usize, length: usize) -> bool {
    // SAFETY: replaces pages of a mapping of ours with others, at the same place and size.
    let mapped = unsafe {
        libc::mmap(
            start as *mut c_void,
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    mapped != libc::MAP_FAILED
}

/// Hands a signal that is none of our business to whoever had it before.
fn chain(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void, fault: bool) {
    let default = libc::SIG_DFL;
    let previous = PREVIOUS.get();
    match previous.map_or(default, |previous| previous.sa_sigaction) {
        libc::SIG_IGN if !fault => {}
        // A fault recurs when the handler returns and a sent signal is sent again; either way the
        // process ends as it would have without us. The kernel lets nobody ignore a fault.
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: all-zero is the default disposition; both calls are async-signal-safe.
            unsafe {
                libc::sigaction(signal, &std::mem::zeroed(), null_mut());
                if !fault {
                    libc::raise(signal);
                }
            }
        }
        handler if previous.is_some_and(|previous| previous.sa_flags & libc::SA_SIGINFO != 0) => {
            // SAFETY: installed with SA_SIGINFO, so it has this signature.
            let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
                unsafe { std::mem::transmute(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: installed without SA_SIGINFO, so it has this signature.
            let handler: extern "C" fn(c_int) = unsafe { std::mem::transmute(handler) };
            handler(signal);
        }
    }
}
