// Lists this pack's templates in the order of the numbers that their names begin with.
// ComfyUI lists them as they lie on the disk.

import { api } from "../../scripts/api.js";

const PACK = decodeURIComponent(new URL(import.meta.url).pathname.split("/").at(-2));
const list = api.getWorkflowTemplates;

if (list) {
  api.getWorkflowTemplates = async function (...given) {
    const templates = await list.apply(this, given);
    templates?.[PACK]?.sort();
    return templates;
  };
}
