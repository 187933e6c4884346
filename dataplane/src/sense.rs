//! Sense data (SPC-6 4.4).
