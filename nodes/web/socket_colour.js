// Gives the ERASURE sockets and links a colour, where the user's palette names none.

import { app } from "../../scripts/app.js";

const TYPE = "ERASURE";
const COLOUR = "#e0a060";

/** Each time a palette is loaded, the browser empties the colours of types that it does not name. */
function colour(colours) {
  if (!colours) return;
  let named = colours[TYPE];
  Object.defineProperty(colours, TYPE, {
    get: () => named || COLOUR,
    set: (value) => (named = value),
    configurable: true,
    enumerable: true,
  });
}

app.registerExtension({
  name: "ConceptUnlearn.SocketColour",
  setup() {
    colour(app.canvas?.default_connection_color_byType);
    colour(app.canvas?.constructor?.link_type_colors);
    // Nodes 2.0 reads a variable of the page. A palette sets it on the page itself, which counts
    // before this rule.
    const style = document.createElement("style");
    style.textContent = `:root { --color-datatype-${TYPE}: ${COLOUR}; }`;
    document.head.append(style);
  },
});
