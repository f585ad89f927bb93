// Begins.

function failed(what) {
  const place = byId("failure");
  place.textContent = what;
  place.hidden = false;
}

async function begin() {
  if (typeof DecompressionStream === "undefined") {
    failed("This browser is too old for this report: it can't unpack compressed data.");
    return;
  }
  index = await unpacked("index");
  if (index.version !== 1) {
    failed("This report is of another version than its page.");
    return;
  }
  // Hidden until there is something to measure.
  byId("page").hidden = false;
  head();
  facts();
  listPanel(openDetail);
  filtersPanel();
  chartsPanel();
  detailPanel();
  showTimeline(openDetail);
  showRecord();
  refresh();
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !byId("detail").open && !event.target.closest("input, select, textarea")) {
      event.preventDefault();
      byId("search").focus();
    }
  });
  document.documentElement.dataset.ready = "true";
}

begin().catch((error) => failed(`This report can't be shown: ${error.message}`));
