// Opened from a folder, a page may not read others: search names pages, without lines from them.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
