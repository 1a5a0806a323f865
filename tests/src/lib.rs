//! Helpers of the stories.
