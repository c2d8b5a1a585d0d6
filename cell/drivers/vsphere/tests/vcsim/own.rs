//! What a vCenter has beside the suite.
